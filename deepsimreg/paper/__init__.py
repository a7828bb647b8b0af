"""The paper: which runs there are, how they are made and kept, and what is shown of them."""
