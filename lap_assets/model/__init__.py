"""The vocabulary of the platform, without I/O: data ids, products, cameras, the sky, images, the survey."""
