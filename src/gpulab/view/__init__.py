"""Every word, table and page gpulab prints."""
