"""All-atom physics: force fields, dynamics, structures, labels."""
