"""What a comparison shows: tables for the terminal, a page that opens offline, a card beside a saved model."""
