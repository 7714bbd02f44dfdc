"""Models of fraud measured as the Fraud Detection Handbook measures them."""
