"""What came out of searches: tables, retraining, and the only door to the test split. Changes neither trials nor study."""
