"""What HTTP says: requests and answers as pydantic models, and the OpenAPI document."""
