"""The declarations of the training methods, one file each: for settings, rules, page and forecast. Without torch."""
