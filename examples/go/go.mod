module example.com/pod

go 1.22
