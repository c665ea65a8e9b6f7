"""How flat the forgotten region must be: one file each."""
