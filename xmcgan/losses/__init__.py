"""The adversarial and the contrastive losses."""
