"""Pure decisions: addresses, slots, keys, names and sizes. Imports no SDK and touches nothing."""
