"""Who may do what: API keys, tenants, scopes."""
