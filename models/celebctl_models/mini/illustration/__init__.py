"""The illustrated world: people, cars and scenes drawn as clean illustrations, 128 px and above."""
