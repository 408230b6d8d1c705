"""Tools that find clips which show the same."""
