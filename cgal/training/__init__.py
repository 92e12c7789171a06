"""How a potential is fitted to labelled frames."""
