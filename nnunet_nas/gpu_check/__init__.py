"""What has to hold on a GPU, as checks that anyone with one can run; and what of it can be seen without one."""
