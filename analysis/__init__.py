"""Results of searches: tables, retraining, and the only door to the test split. Nothing here changes trials or the study."""
