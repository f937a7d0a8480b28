"""Quality, dense and SALE side by side: `python -m sale.eval --help`."""
