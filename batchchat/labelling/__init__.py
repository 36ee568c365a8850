"""How good the labels are: people's reviews, agreement, calibration, and what a cascade may promise."""
