"""What the store promises when processes die, disks fill and bytes rot."""
