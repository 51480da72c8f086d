"""Everything of Atelier except the page. Nothing in here imports gradio."""
