"""Owns the lab's AWS half: the API, one machine per Auto Scaling instance, the metadata service.

It is moto's server plus what moto leaves out and the fleet needs. It never enforces IAM policies
and never charges, throttles or runs out of capacity: what depends on those is not proven here.
"""
