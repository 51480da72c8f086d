"""The training methods' declarations, one file each: what settings, rules, page and forecast ask. Without torch."""
