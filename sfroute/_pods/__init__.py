"""What a gateway knows of a service's pods, and how it chooses among them."""
