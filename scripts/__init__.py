"""Small programs that read run directories or measure."""
