"""The GPU side: runs a model and stores what its layers say. torch and transformers live here."""
