"""How the embedded reasoner was trained and measured, and the card that says so."""
