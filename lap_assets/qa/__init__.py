"""Looking at products: pure metrics, plots and pictures. Nothing here decides what the pipeline does."""
