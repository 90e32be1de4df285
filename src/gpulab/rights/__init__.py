"""The rights gpulab needs: one table of commands, calls, resources and conditions, and the policies made from it. Calls nothing."""
