"""The generator and the discriminator, and the parts that they are made of."""
