package dhcpd
