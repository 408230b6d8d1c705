"""Tools that cut videos into shots."""
