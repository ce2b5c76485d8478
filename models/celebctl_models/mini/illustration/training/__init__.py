"""How mini learns the illustrated world: data, networks and one module per stage."""
