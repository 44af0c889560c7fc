"""Device models' connections: who may connect, and how what they send is read and answered."""
