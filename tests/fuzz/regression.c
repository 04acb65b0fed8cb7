/* regression.c - runs a fuzz target over the files of a folder, where there is no libFuzzer. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *path)
{
	FILE *file = fopen(path, "rb");
	uint8_t *data = NULL;
	long size = -1;
	int ret = -1;

	if (file && fseek(file, 0, SEEK_END) == 0)
		size = ftell(file);
	if (size < 0)
		goto err_out;
	data = malloc((size_t)size + 1);
	rewind(file);
	if (!data || fread(data, 1, (size_t)size, file) != (size_t)size)
		goto err_out;
	printf("%s\n", path);
	fflush(stdout);
	LLVMFuzzerTestOneInput(data, (size_t)size);
	ret = 0;
err_out:
	if (ret)
		fprintf(stderr, "cannot read %s: %s\n", path, strerror(errno));
	if (file)
		fclose(file);
	free(data);
	return ret;
}

int main(int argc, char **argv)
{
	char path[PATH_MAX];
	struct dirent *entry;
	int n = 0, failed = 0;
	DIR *dir;

	if (argc != 2) {
		fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
		return 2;
	}
	dir = opendir(argv[1]);
	if (!dir) {
		fprintf(stderr, "cannot open %s: %s\n", argv[1], strerror(errno));
		return 2;
	}
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", argv[1], entry->d_name);
		failed |= run_file(path);
		n++;
	}
	closedir(dir);
	printf("%d inputs\n", n);
	return failed || n == 0;
}
