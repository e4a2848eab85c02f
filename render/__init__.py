"""Pure texts, from settings and plan: what machines are given. Sees no Pulumi, touches nothing."""
