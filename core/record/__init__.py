"""The records of a run: folders, journal, events, commands, atomic files, problems and addressed random draws."""
