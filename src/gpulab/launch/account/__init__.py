"""What the account holds for launches: the region's network and key, the place of the kept work, images of ours."""
