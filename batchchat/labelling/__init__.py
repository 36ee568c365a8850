"""Labels and how good they are: rows for people, their reviews, and what looks wrong in the answers."""
