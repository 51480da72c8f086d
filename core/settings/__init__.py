"""What can be asked of Atelier: one declaration per setting, one file per group."""
