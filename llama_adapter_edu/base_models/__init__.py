"""`load_llama`: the course's Llama, or any other from the hub or a folder."""
