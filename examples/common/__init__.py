"""What several examples share: a U-Net, overlap of label maps, reading arrays, running fits."""
