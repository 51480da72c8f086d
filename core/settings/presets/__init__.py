"""Presets (jobs as files), recipes, memory levels, and files of other trainers."""
