"""The whole system on one machine: toolchain, cloud and guests. The product never imports it."""
