"""A model, a comparison or runs as one HTML file to hand on; knows neither the session nor the address."""
