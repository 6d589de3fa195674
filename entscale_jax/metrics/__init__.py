"""What is measured on generated pictures; import the module that you need."""
