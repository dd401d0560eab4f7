"""The page about one search: what it says (sections), how it is drawn (figures), and how it becomes one HTML file (write)."""
