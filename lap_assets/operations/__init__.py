"""What an operator does, joining the rooms: open a repository, ingest, drive runs, read, report, the demo.

The command line and the Dagster definitions are thin over these; a notebook calls them as they are.
"""
