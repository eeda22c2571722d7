"""What is known of formats and layers, as plain values: for tables, pages and pictures."""
