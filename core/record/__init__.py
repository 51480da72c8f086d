"""What a run leaves behind: folders, journal, events, commands, atomic files, problems and addressed draws."""
