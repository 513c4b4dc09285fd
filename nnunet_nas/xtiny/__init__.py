"""XTinyU-Net: the smallest channel width that still works, decided at initialisation from unlabelled images."""
