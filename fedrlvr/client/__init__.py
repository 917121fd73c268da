"""What an organisation does with the messages it gets, written for a cohort of K clients."""
