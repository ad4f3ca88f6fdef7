"""The simulated survey: a sky with a lensing cluster seen through an imperfect telescope, with the truth beside it.

Here belong the truth and what bends it on its way to raw frames. Nothing is shared with `science/`: an error in common
would cancel between what was injected and what is measured. GalSim gives the light profiles and the lens.
"""
