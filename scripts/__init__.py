"""Small programs that read run folders or measure."""
